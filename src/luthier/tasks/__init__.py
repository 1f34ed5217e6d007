"""What a task makes of rows: columns, features, predictions and scores. Loads nothing itself."""
