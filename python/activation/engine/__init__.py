"""Detection, delivery and feedback, and the runs of the workers. It knows a database by its protocol alone."""
