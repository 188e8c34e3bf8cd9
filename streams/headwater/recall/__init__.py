"""Recall: what a request may ask for, where candidates come from, how they are fused and why each is there."""
