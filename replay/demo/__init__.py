"""The demo: a whole Hourglass on this machine, with no key and no network, shown at work."""
