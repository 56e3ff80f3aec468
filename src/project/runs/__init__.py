"""Run and sweep folders: their files, results and comparison."""
