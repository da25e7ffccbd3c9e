"""What is computed: the integer network, its plan, its simulation and the snapped model."""
