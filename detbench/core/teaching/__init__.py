"""What a teacher adds to training: objects made out on unlabelled images, and queries that must decode alike."""
