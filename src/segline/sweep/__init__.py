"""Sweeps: many trainings by one command, each done once however often the command is stopped and started."""
