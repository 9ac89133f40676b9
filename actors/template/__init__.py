"""The template: the root file system that new sandboxes start from, how it is made, and what is in it."""
