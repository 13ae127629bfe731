-- Run once, when the database is made: the service is no superuser of its server.
\set password `cat /run/secrets/database_password`
-- Strip the white space around the password, as pydantic-settings does.
SELECT format('CREATE ROLE service LOGIN PASSWORD %L', btrim(:'password', E' \t\n\r\f\x0b')) \gexec
CREATE DATABASE service OWNER service TEMPLATE template0 ENCODING 'UTF8';
