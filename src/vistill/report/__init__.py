"""Evaluation reports, tables and model cards."""
