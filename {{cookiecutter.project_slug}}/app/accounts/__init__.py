"""Accounts: users, sign-in, sessions, second factors, and recovery.

Each subfolder holds the routes, schemas and service of one subject; modules that several subjects share are here.
"""
