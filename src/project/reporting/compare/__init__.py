"""Compare runs: tables, spreadsheets and plots."""
