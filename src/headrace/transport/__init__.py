"""Wires: how requests and answers look outside, and nothing about what they mean."""
