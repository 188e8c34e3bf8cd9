"""Recall: sources of candidates, their fusion, and the reasons of each item."""
