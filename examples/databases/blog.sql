SELECT title, views FROM posts ORDER BY views DESC;
