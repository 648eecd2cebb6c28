"""What an adapter or a merged model shows of itself on the hub: gathered, checked, and pushed in one commit."""
