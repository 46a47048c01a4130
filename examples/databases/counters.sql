SELECT key, value FROM counterd.counters ORDER BY value DESC;
