"""Accounts: who there is, how they sign in, and what guards them.

Each folder is a subject with its routes, schemas and service; what they share stands here.
"""
