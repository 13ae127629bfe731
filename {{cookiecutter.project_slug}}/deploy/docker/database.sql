-- Run once, when the database is made: the service is no superuser of its server.
\set password `cat /run/secrets/database_password`
-- Without the white space around it, as the service reads it.
SELECT format('CREATE ROLE service LOGIN PASSWORD %L', btrim(:'password', E' \t\n\r\f\x0b')) \gexec
CREATE DATABASE service OWNER service TEMPLATE template0 ENCODING 'UTF8';
