"""Tuning by Optuna: the fusion's weights over cached tables, and the signals' own settings."""
