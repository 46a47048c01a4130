// postgres.js - a libpq URI or conninfo string for npm's pg, and a connection that listens
import fs from 'node:fs';
import os from 'node:os';
import pg from 'pg';
import { parse } from 'pg-connection-string';

const SOCKETS = '/var/run/postgresql'; // where Debian's libpq looks when no host is named
const RETRY_MS = [250, 500, 1000, 2000, 5000];

// host=/tmp/pg dbname='a b' -> { host: '/tmp/pg', dbname: 'a b' }; in quotes, \' and \\ stand for ' and \
function parseConninfo(text) {
  const found = {};
  const rest = text.replace(/\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))/gy, (_, name, quoted, bare) => {
    found[name] = (quoted ?? bare).replace(/\\(.)/g, '$1');
    return '';
  });
  if (rest.trim()) throw new Error(`'${text}' is neither a postgresql:// URI nor a conninfo string`);
  return { ...found, database: found.dbname };
}

// What pg.Client takes. Nothing that connects with it can write, and nothing runs for longer than ten seconds. Our
// queries are short; of tables that were never analyzed Postgres believes otherwise, and would compile them (jit).
export function connectionOptions(url) {
  const given = /^postgres(ql)?:\/\//.test(url) ? parse(url) : parseConninfo(url);
  const { host, port, user, password, database, ssl } = given;
  const here = fs.existsSync(SOCKETS) ? SOCKETS : undefined;
  const chosen = {
    host: host || process.env.PGHOST || here,
    port: port || process.env.PGPORT,
    user: user || process.env.PGUSER || os.userInfo().username,
    password: password || undefined,
    database: database || process.env.PGDATABASE || user,
    ssl,
    application_name: 'counterd dashboard',
    connectionTimeoutMillis: 5000,
    statement_timeout: 10000,
    options: '-c default_transaction_read_only=on -c jit=off',
    keepAlive: true,
  };
  return Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== undefined));
}

// Calls onFlush(payload) for each notification, and with null whenever listening begins, since what came before was not
// heard. Connects again for as long as the process lives; onLost(error) tells that it has to.
export function listen(options, { onFlush, onLost }) {
  let attempt = 0;

  async function connect() {
    const client = new pg.Client(options);
    let lost = false;
    const again = (error) => {
      if (lost) return;
      lost = true;
      onLost(error);
      client.end().catch(() => {});
      setTimeout(connect, RETRY_MS[Math.min(attempt++, RETRY_MS.length - 1)]);
    };
    client.on('error', again);
    client.on('end', () => again(new Error('Postgres closed the connection')));
    client.on('notification', ({ payload }) => onFlush(JSON.parse(payload)));
    try {
      await client.connect();
      await client.query('LISTEN counterd_flushed');
      attempt = 0;
      onFlush(null);
    } catch (error) {
      again(error);
    }
  }
  connect();
}
