"""How machines are made and talked to: the driver protocol, the drivers, the connection to the guest agent."""
