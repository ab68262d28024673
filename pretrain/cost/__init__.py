"""What a plan costs on a device or a cluster."""
