"""Recipes: one package per algorithm."""
