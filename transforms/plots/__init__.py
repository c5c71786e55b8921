"""Plots of training and of runs."""
