"""What people did, computed: an earlier moment for simulate(), and the statistics of suggest(). No database."""
