"""The guest agent: PID 1 of every machine. Standard library only; it runs inside, its host side does not."""
