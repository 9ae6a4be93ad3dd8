"""What authors write, checked and read: definitions, SQL, cron expressions, journeys, configs of Skene. No database."""
