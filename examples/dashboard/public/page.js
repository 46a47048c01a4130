// page.js - what the page shows, and when it asks: at the start, after each flush, and when something is chosen
//
// What is chosen stands in the address (#key=…&range=24h&by=hour&namespace=…), so that a wall can be given one.
import { Chart } from '/chart.js';

const LATE_S = 150; // cron's minute, twice, and some
const SLOW_MS = 15000; // asks without a flush too: the chart's right edge is now
const COUNT = new Intl.NumberFormat('en');
const RATE = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

const $ = (id) => document.getElementById(id);
const chosen = { key: '', range: '1h', by: 'total', match: '', namespace: '' };
let freshUntil = NaN; // ms
let clockAhead = 0; // of this machine's clock against Postgres's, ms
let lost = '';
let notes = ''; // what the page has to say about the namespace

const count = (text) => COUNT.format(BigInt(text ?? 0));
const clock = (ms) => new Date(ms).toLocaleTimeString('en-GB', { hour12: false });

function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(chosen)) chosen[name] = hash.get(name) ?? chosen[name];
}

function writeAddress() {
  const hash = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value));
  history.replaceState(null, '', `#${hash}`);
}

// --- asking ---

// Gives the rows, and in how many ms it is worth to ask again; 0 = with the next flush.
async function ask(question, params = {}) {
  const reply = await fetch(`/api/${question}?${new URLSearchParams(params)}`);
  const rows = await reply.json();
  if (!reply.ok) throw new Error(rows.error);
  return { rows, againMs: Number(reply.headers.get('X-Again-Ms')) };
}

// A part of the page: show(rows) gets the answer to its newest question only, whichever comes first.
function part(question, show) {
  let newest = 0;
  let timer;
  return async function refresh() {
    const mine = ++newest;
    clearTimeout(timer);
    try {
      const { rows, againMs } = await question();
      if (mine !== newest) return;
      show(rows);
      asked(null);
      if (againMs) timer = setTimeout(refresh, againMs);
    } catch (error) {
      if (mine === newest) asked(error);
    }
  };
}

function asked(error) {
  const trouble = error instanceof TypeError ? 'The dashboard\'s own server does not answer.' : error?.message;
  $('trouble').hidden = !trouble && !notes;
  $('trouble').dataset.kind = trouble ? 'trouble' : 'note';
  $('trouble').textContent = trouble ?? notes;
}

// --- the figures ---

function showFresh() {
  const late = (Date.now() - clockAhead - freshUntil) / 1000;
  $('fresh').dataset.state = lost ? 'lost' : Number.isNaN(late) ? 'waiting' : late > LATE_S ? 'late' : 'fresh';
  $('fresh-text').textContent = Number.isNaN(late)
    ? 'Not every shard was flushed yet' : `All events before ${clock(freshUntil)} are in`;
  const ago = late < 0 ? 0 : Math.round(late);
  const [unit, seconds] = ago < 120 ? ['s', 1] : ago < 7200 ? ['min', 60] : ['h', 3600];
  $('fresh-age').textContent = lost || (Number.isNaN(late) ? '' : `${Math.round(ago / seconds)} ${unit} ago`);
  $('fresh-age').title = lost;
}

function showNamespaces(rows) {
  const names = rows.map((row) => row.namespace);
  if (!names.includes(chosen.namespace)) chosen.namespace = names[0] ?? '';
  $('namespace').hidden = names.length < 2;
  $('namespace').replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen.namespace)));
  document.title = chosen.namespace && chosen.namespace !== 'counterd' ? `${chosen.namespace} · counterd` : 'counterd';
}

function noteworthy(row) {
  const found = [];
  if (row?.error) found.push(`The last flush had a failure: ${row.error}`);
  if (Number(row?.quarantined)) {
    found.push(`Generations in quarantine: ${count(row.quarantined)} (flusher quarantine list).`);
  }
  if (Number(row?.parked)) found.push(`Parked: ${count(row.parked)} (flusher parked list).`);
  if (!row || row.run_keys === null) found.push('Nothing was flushed yet. Send a line to counterd and run the flusher.');
  return found.join(' ');
}

const askFigures = part(() => ask('overview'), (rows) => {
  showNamespaces(rows);
  const row = rows.find(({ namespace }) => namespace === chosen.namespace);
  notes = noteworthy(row);
  const total = count(row?.total);
  $('total').textContent = total;
  document.documentElement.style.setProperty('--total-size', `${Math.min(3.6, 44 / total.length)}rem`);
  $('rate').textContent = row?.increments_per_s == null ? '–' : RATE.format(row.increments_per_s);
  $('flush').textContent = row?.run_keys == null
    ? '–' : `${count(row.run_keys)} ${row.run_keys === '1' ? 'key' : 'keys'}`;
  $('flush').title = row?.run_s == null ? '' : `in ${row.run_s} s`;
  if (row) clockAhead = Date.now() - Date.parse(row.now);
  freshUntil = row?.fresh_until ? Date.parse(row.fresh_until) : NaN;
  showFresh();
});

// --- the chart ---

const chart = new Chart($('chart'), showPoint);
let chartNote = '';

function span(seconds) {
  if (seconds === 60) return 'minute';
  return seconds % 3600 ? `${seconds / 60} minutes` : `${seconds / 3600} hours`;
}

function showPoint(point) {
  $('chart-note').textContent = point
    ? `${new Date(point.from * 1000).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })}, ` +
      `${clock(point.from * 1000).slice(0, 5)} – ${clock(point.to * 1000).slice(0, 5)}: ${point.value}`
    : chartNote;
}

function askSeries() {
  const { key, range, namespace } = chosen;
  return key ? ask('series', { key, range }) : ask('all', { namespace, range });
}

const askChart = part(askSeries, (rows) => {
  const { key } = chosen;
  $('chart-title').textContent = key || 'All events';
  $('chart-title').title = key;
  $('chart-title').classList.toggle('key', key !== '');
  $('chart-close').hidden = !key;
  $('chart-total').textContent = key && rows[0]?.total != null ? count(rows[0].total) : '';
  const step = rows.length > 1 ? rows[1].at - rows[0].at : 60;
  const empty = key ? !rows[0].rolled_up : !rows.some(({ value }) => value !== '0');
  $('chart').classList.toggle('empty', empty);
  chartNote = empty
    ? (key ? 'No history of this key: its target has no rollup into counterd.rollups.' : 'Nothing was flushed in this time.')
    : `Per ${span(step)}${key ? '' : ', by when it was flushed'}`;
  showPoint(null);
  chart.show(rows.map(({ at }) => at), rows.map(({ value }) => Number(value)), freshUntil / 1000);
});

// --- the list ---

function topRow({ key, value }, largest) {
  const button = document.createElement('button');
  button.type = 'button';
  button.setAttribute('aria-current', String(key === chosen.key));
  button.style.setProperty('--share', `${largest > 0 ? Math.max(0, Number(value) / largest) * 100 : 0}%`);
  for (const [name, text] of [['key', key], ['value', count(value)]]) {
    const span = document.createElement('span');
    span.className = name;
    span.textContent = text;
    if (name === 'key') span.title = text;
    button.append(span);
  }
  button.addEventListener('click', () => choose({ key: chosen.key === key ? '' : key }));
  const item = document.createElement('li');
  item.append(button);
  return item;
}

const askTop = part(() => ask('top', { by: chosen.by, match: chosen.match }), (rows) => {
  const focused = document.activeElement.closest?.('#top button')?.querySelector('.key').textContent;
  const largest = rows.length ? Number(rows[0].value) : 0;
  $('top').replaceChildren(...rows.map((row) => topRow(row, largest)));
  if (focused !== undefined) {
    [...$('top').querySelectorAll('button')].find((b) => b.querySelector('.key').textContent === focused)?.focus();
  }
  $('top-note').textContent = rows.length ? '' : chosen.match ? 'No such keys.'
    : chosen.by === 'total' ? 'No counters yet.' : 'Nothing here: no target has a rollup, or nothing came.';
});

// --- choosing ---

function showChoice() {
  for (const [group, name] of [['ranges', 'range'], ['bys', 'by']]) {
    for (const button of $(group).children) button.setAttribute('aria-pressed', String(button.value === chosen[name]));
  }
  for (const button of $('top').querySelectorAll('button')) {
    button.setAttribute('aria-current', String(button.querySelector('.key').textContent === chosen.key));
  }
  if ($('match').value !== chosen.match) $('match').value = chosen.match;
}

function choose(changes) {
  Object.assign(chosen, changes);
  writeAddress();
  showChoice();
  if ('namespace' in changes) askFigures();
  if ('by' in changes || 'match' in changes) askTop();
  if ('key' in changes || 'range' in changes || 'namespace' in changes) askChart();
}

async function askAll() {
  await askFigures();
  await Promise.all([askChart(), askTop()]);
}

function start() {
  readAddress();
  showChoice();
  for (const [group, name] of [['ranges', 'range'], ['bys', 'by']]) {
    $(group).addEventListener('click', ({ target }) => target.value && choose({ [name]: target.value }));
  }
  $('match').addEventListener('input', ({ target }) => choose({ match: target.value }));
  $('namespace').addEventListener('change', ({ target }) => choose({ namespace: target.value }));
  $('chart-close').addEventListener('click', () => choose({ key: '' }));
  addEventListener('hashchange', () => { readAddress(); showChoice(); askAll(); });

  const dark = matchMedia('(prefers-color-scheme: dark)');
  const root = document.documentElement.dataset;
  if (localStorage.theme) root.theme = localStorage.theme;
  $('theme').addEventListener('click', () => {
    const isDark = root.theme ? root.theme === 'dark' : dark.matches;
    root.theme = localStorage.theme = isDark ? 'light' : 'dark';
    chart.draw();
  });
  dark.addEventListener('change', () => chart.draw());

  const events = new EventSource('/events');
  events.addEventListener('flushed', () => { lost = ''; askAll(); });
  events.addEventListener('lost', ({ data }) => { lost = `Postgres is away: ${data}`; showFresh(); });
  events.addEventListener('error', () => { lost = 'The dashboard\'s own server is away'; showFresh(); });
  setInterval(showFresh, 1000);
  setInterval(() => document.hidden || askAll(), SLOW_MS);
  askAll();
}

start();
