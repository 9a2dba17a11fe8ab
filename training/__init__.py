"""FantasyTalking's two stages on our shards: one program, two configurations."""
