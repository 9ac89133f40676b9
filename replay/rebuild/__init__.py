"""Bringing a version back in a throw-away machine, and saying how exact it is: rebuild and verify."""
