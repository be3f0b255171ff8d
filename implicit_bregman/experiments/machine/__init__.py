"""Devices, memory and versions."""
