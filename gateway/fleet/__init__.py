"""The engines that exist and what is known of them: membership, health, load."""
