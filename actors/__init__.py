"""What runs: controller, host, session, sandbox, the machine drivers and the guest agent."""
