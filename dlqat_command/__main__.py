"""``python -m dlqat_command`` is ``dlqat``."""

from dlqat_command.main import main

main()
