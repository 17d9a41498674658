"""Graphs run by OpenVINO."""
