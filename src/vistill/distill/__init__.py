"""What a student learns from: losses and objectives."""
