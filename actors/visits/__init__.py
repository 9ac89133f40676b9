"""What people and programs do in a sandbox beside the agent's calls: exec, shell, forward, cp."""
