"""Recipes from launch scripts that people have.

Pure: text in, a recipe and a report out; nothing is executed.
"""
