"""Reads results, draws and tabulates them; never a live solver."""
