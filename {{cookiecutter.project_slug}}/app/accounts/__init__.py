"""Accounts: users, sign-in, sessions, second factors, and recovery.

Each folder is a subject with its routes, schemas and service; shared modules are in this folder.
"""
