-- Run once, when the database is made: the service is no superuser of its server.
\set password `cat /run/secrets/database_password`
CREATE ROLE service LOGIN PASSWORD :'password';
CREATE DATABASE service OWNER service;
