// server.js - a live page of what counterd counts: reads Postgres, and only Postgres
//
//     node server.js [--listen HOST:PORT] [URL]
//
// The flusher's NOTIFY comes in by LISTEN and goes on to every open page as a server-sent event; the page then asks for
// what it shows. However many pages are open, a question is put to Postgres once per flush: see Answers.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import pg from 'pg';
import { connectionOptions, listen } from './postgres.js';
import { BadRequest, queries } from './queries.js';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const UPLOT = path.join(HERE, 'node_modules', 'uplot', 'dist');
const FILES = {
  '/': [HERE, 'public/index.html', 'text/html'],
  '/page.js': [HERE, 'public/page.js', 'text/javascript'],
  '/chart.js': [HERE, 'public/chart.js', 'text/javascript'],
  '/style.css': [HERE, 'public/style.css', 'text/css'],
  '/uplot.js': [UPLOT, 'uPlot.esm.js', 'text/javascript'],
  '/uplot.css': [UPLOT, 'uPlot.min.css', 'text/css'],
};
const HEADERS = {
  'Cache-Control': 'no-store',
  // uPlot sizes its elements by style attributes.
  'Content-Security-Policy': "default-src 'self'; img-src data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
};
const HEARTBEAT_MS = 20000;
const ANSWER_MS = 5000; // an answer ages without a flush too: the chart ends now
const SHARE = 20; // a question that takes a second is put at most every twenty
const ANSWERS_MAX = 500;

// The answer to a question (a URL) since the last flush; who asks while it is on its way waits for the same one. Of a slow
// question the old answer is given until its time has come, with `againMs`: when to ask for a newer one.
class Answers {
  constructor(pool) {
    this.pool = pool;
    this.known = new Map();
    this.flushes = 0;
  }

  async get(url) {
    let entry = this.known.get(url);
    const due = entry?.done && !this.current(entry) && Date.now() >= entry.at + entry.tookMs * SHARE;
    if (!entry || entry.failed || due) entry = this.put(url);
    const body = await entry.answer;
    const againMs = this.current(entry) ? 0 : Math.max(entry.at + entry.tookMs * SHARE - Date.now(), 1);
    return { body, againMs };
  }

  current(entry) {
    return entry.flushes === this.flushes && Date.now() - entry.at < ANSWER_MS;
  }

  put(url) {
    const entry = { at: Date.now(), flushes: this.flushes, done: false, failed: false, tookMs: 0 };
    entry.answer = this.ask(url, entry);
    entry.answer.then(() => { entry.done = true; }, () => { entry.failed = true; });
    this.known.delete(url);
    this.known.set(url, entry);
    if (this.known.size > ANSWERS_MAX) this.known.delete(this.known.keys().next().value);
    return entry;
  }

  async ask(url, entry) {
    const { pathname, searchParams } = new URL(url, 'http://page');
    const { text, values } = queries[pathname.slice('/api/'.length)](searchParams);
    const client = await this.pool.connect();
    const start = Date.now();
    try {
      return JSON.stringify((await client.query(text, values)).rows);
    } finally {
      entry.tookMs = Date.now() - start;
      client.release();
    }
  }
}

// The open pages, and what they are told: "flushed" or "lost".
class Pages {
  constructor() {
    this.open = new Set();
    this.last = 'event: lost\ndata: connecting to Postgres\n\n';
    setInterval(() => this.open.forEach((page) => page.write(':\n\n')), HEARTBEAT_MS).unref();
  }

  add(request, response) {
    response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/event-stream' });
    response.write(this.last);
    this.open.add(response);
    request.on('close', () => this.open.delete(response));
  }

  tell(event, text) {
    this.last = `event: ${event}\ndata: ${text.replace(/[\r\n]+/g, ' ')}\n\n`;
    this.open.forEach((page) => page.write(this.last));
  }
}

function explain(error) {
  const missing = { '3F000': true, '42P01': true, '42883': true }; // schema, table, function
  const hint = missing[error.code] ? ': has this database been migrated? (flusher -c FILE migrate)' : '';
  return error.message + hint;
}

function stop(code, message) {
  console.error(`dashboard: ${message}`);
  process.exit(code);
}

function readArguments() {
  const { values, positionals } = parseArgs({
    options: { listen: { type: 'string', default: '127.0.0.1:8127' } },
    allowPositionals: true,
  });
  const [, host, port] = /^\[?(.*?)\]?:(\d+)$/.exec(values.listen) ?? [];
  if (port === undefined || positionals.length > 1) throw new Error('usage: run [--listen HOST:PORT] [URL]');
  return { host, port: Number(port), options: connectionOptions(positionals[0] ?? 'postgresql:///counters') };
}

function main({ host, port, options }) {
  const pool = new pg.Pool({ ...options, max: 3 });
  pool.on('error', () => {}); // an idle connection that went away; the next question makes another

  const answers = new Answers(pool);
  const pages = new Pages();
  listen(options, {
    onFlush: (flush) => {
      answers.flushes++;
      pages.tell('flushed', JSON.stringify(flush));
    },
    onLost: (error) => pages.tell('lost', explain(error)),
  });

  // A page from elsewhere whose name was pointed at this address must not read it (DNS rebinding).
  const local = new Set(['localhost', '127.0.0.1', '[::1]', host]);

  const server = http.createServer(async (request, response) => {
    const answer = (status, type, body, more = {}) => {
      response.writeHead(status, { ...HEADERS, ...more, 'Content-Type': `${type}; charset=utf-8` });
      response.end(body);
    };
    const { pathname } = new URL(request.url, 'http://page');
    const { host: named = '' } = request.headers;
    if (!local.has(named.replace(/:\d+$/, ''))) return answer(403, 'text/plain', 'not this host\n');
    if (request.method !== 'GET') return answer(405, 'text/plain', 'only GET\n');
    if (pathname === '/events') return pages.add(request, response);
    if (Object.hasOwn(FILES, pathname)) {
      const [directory, file, type] = FILES[pathname];
      return answer(200, type, fs.readFileSync(path.join(directory, file)));
    }
    if (!pathname.startsWith('/api/') || !Object.hasOwn(queries, pathname.slice('/api/'.length))) {
      return answer(404, 'text/plain', 'not here\n');
    }
    try {
      const { body, againMs } = await answers.get(request.url);
      return answer(200, 'application/json', body, againMs ? { 'X-Again-Ms': againMs } : {});
    } catch (error) {
      const status = error instanceof BadRequest ? 400 : 503;
      return answer(status, 'application/json', JSON.stringify({ error: explain(error) }));
    }
  });
  server.on('error', (error) => stop(69, error.message));
  server.listen(port, host, () => {
    const { address, port: chosen } = server.address();
    console.log(`event=listening url=http://${address.includes(':') ? `[${address}]` : address}:${chosen}/`);
  });
}

let given;
try {
  given = readArguments();
} catch (error) {
  stop(64, error.message);
}
main(given);
