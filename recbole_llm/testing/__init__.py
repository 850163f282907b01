"""Contracts of encoders, signals and models, for the entries of others too."""
