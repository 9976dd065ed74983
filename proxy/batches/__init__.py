"""OpenAI's Batch API: files of requests that may wait a day, run as workflows of class `batch`."""
