-- Run once, when the database server is initialized. The service's role is no superuser and does not own its tables.
\set password `cat /run/secrets/database_password`
\set owner_password `cat /run/secrets/database_owner_password`
-- Strip the white space around the passwords, as pydantic-settings does.
SELECT format('CREATE ROLE service LOGIN PASSWORD %L', btrim(:'password', E' \t\n\r\f\x0b')) \gexec
SELECT format('CREATE ROLE owner LOGIN PASSWORD %L', btrim(:'owner_password', E' \t\n\r\f\x0b')) \gexec
CREATE DATABASE service OWNER owner TEMPLATE template0 ENCODING 'UTF8';
