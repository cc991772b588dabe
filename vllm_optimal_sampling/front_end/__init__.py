"""The front end's process: admits requests, and puts records on outputs, responses and metrics."""
