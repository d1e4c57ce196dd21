// The live page: streams a completion from /v1/completions and draws /v1/stats once a second.
'use strict';

const byId = (id) => document.getElementById(id);
const POLL_MS = 1000;
const SEEN = 120;
const STATES = ['in_use', 'pinned', 'cached', 'free'];

// --- Light and dark ---

function storage(name, value) {
  try {
    if (value === undefined) return sessionStorage.getItem(name);
    sessionStorage.setItem(name, value);
  } catch { /* not allowed: this page forgets */ }
  return null;
}

const systemDark = matchMedia('(prefers-color-scheme: dark)');
function applyTheme() {
  document.documentElement.dataset.theme =
      storage('theme') || (systemDark.matches ? 'dark' : 'light');
}
systemDark.addEventListener('change', applyTheme);
byId('theme').addEventListener('click', () => {
  storage('theme', document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark');
  applyTheme();
});
applyTheme();

// --- Asking the server ---

function headers(more) {
  const key = byId('key').value;
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}
byId('key').value = storage('key') || '';
byId('key').addEventListener('change', () => storage('key', byId('key').value));

// The text of an error response, whoever wrote it.
async function errorOf(response) {
  if (response.status === 401) byId('key-field').hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

// Calls `onEvent` with the data of each server-sent event.
async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split('\n\n');
    text = events.pop();
    for (const event of events) {
      if (event.startsWith('data: ')) onEvent(event.slice('data: '.length));
    }
  }
}

// --- A completion ---

const NUMBERS = ['temperature', 'top_p', 'min_p', 'top_k', 'max_tokens', 'seed'];
let model = null;
let abort = null;

for (const name of ['temperature', 'top_p', 'min_p']) {
  const show = () => { byId(`${name}-value`).textContent = Number(byId(name).value).toFixed(2); };
  byId(name).addEventListener('input', show);
  show();
}

function showModes(modes, chosen) {
  const explain = {
    exact: 'The model\'s own distribution',
    hiergen: 'Units in parallel, the context from tokens: faster',
    recgen: 'Units in parallel, the context from predictions: fastest',
  };
  byId('modes').replaceChildren(...modes.map((mode) => {
    const label = document.createElement('label');
    const input = document.createElement('input');
    const text = document.createElement('span');
    input.type = 'radio';
    input.name = 'mode';
    input.value = mode;
    input.checked = mode === chosen;
    label.title = explain[mode] || '';
    text.textContent = mode;
    label.append(input, text);
    return label;
  }));
}

function requestBody() {
  const body = {
    model: model.name,
    prompt: byId('prompt').value,
    stream: true,
    stream_options: { include_usage: true },
    mode: document.querySelector('input[name=mode]:checked').value,
  };
  for (const name of NUMBERS) {
    if (byId(name).value !== '') body[name] = Number(byId(name).value);
  }
  return body;
}

function say(text, failed = false) {
  byId('run').textContent = text;
  byId('run').classList.toggle('failed', failed);
}

function append(text, kind) {
  const span = document.createElement('span');
  span.className = kind;
  span.textContent = text;
  const output = byId('output');
  // Whoever has scrolled up wants to read there.
  const follow = output.scrollTop + output.clientHeight >= output.scrollHeight - 40;
  output.append(span);
  if (follow) output.scrollTop = output.scrollHeight;
}

async function generate() {
  if (abort !== null || model === null) return;
  abort = new AbortController();
  byId('generate').disabled = true;
  byId('stop').disabled = false;
  byId('output').replaceChildren();
  byId('output').classList.add('writing-now');
  append(byId('prompt').value, 'given');
  say('waiting for the first token');
  const begin = performance.now();
  let firstToken = null;
  let reason = null;
  try {
    const response = await fetch('v1/completions', {
      method: 'POST',
      headers: headers({ 'content-type': 'application/json' }),
      body: JSON.stringify(requestBody()),
      signal: abort.signal,
    });
    if (!response.ok) throw new Error(await errorOf(response));
    await readEvents(response, (data) => {
      if (data === '[DONE]') return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) {
        if (choice.text) append(choice.text, 'fresh');
        reason = choice.finish_reason || reason;
      }
      if (firstToken === null) {
        firstToken = performance.now();
        say(`writing; first token after ${milliseconds(firstToken - begin)}`);
      }
      if (event.usage) {
        const { prompt_tokens: prompt, completion_tokens: written } = event.usage;
        const cached = event.usage.prompt_tokens_details.cached_tokens;
        const seconds = (performance.now() - firstToken) / 1000;
        const speed = written > 1 && seconds > 0 ? `, ${number((written - 1) / seconds)} per second` : '';
        say(`${prompt} prompt tokens (${cached} cached), ${written} written${speed}, ` +
            `first after ${milliseconds(firstToken - begin)}, ended by ${reason}`);
      }
    });
  } catch (error) {
    say(error.name === 'AbortError' ? 'stopped' : error.message, error.name !== 'AbortError');
  } finally {
    abort = null;
    byId('generate').disabled = false;
    byId('stop').disabled = true;
    byId('output').classList.remove('writing-now');
  }
}

byId('form').addEventListener('submit', (event) => {
  event.preventDefault();
  generate();
});
byId('stop').addEventListener('click', () => abort && abort.abort());
document.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) generate();
  if (event.key === 'Escape' && abort) abort.abort();
});

// --- The server, live ---

const seen = [];
let before = null;

const number = (value) => value.toLocaleString('en', { maximumFractionDigits: value < 100 ? 1 : 0 });
function milliseconds(value) {
  if (value >= 1000) return `${number(value / 1000)} s`;
  return value < 10 ? `${value.toFixed(2)} ms` : `${Math.round(value)} ms`;
}
function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; value >= 1024 && unit + 1 < units.length; ++unit) value /= 1024;
  return `${number(value)} ${units[unit]}`;
}

function svg(name, attributes) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

const WIDTH = 480;
const xOf = (i) => WIDTH - (seen.length - 1 - i) * (WIDTH / (SEEN - 1));

// Lines from 0 to the largest value of all `series`: [{ values, name, area }].
function drawLines(chart, height, series, least) {
  const peak = Math.max(...series.flatMap((one) => one.values));
  const most = Math.max(least, peak) * 1.08;
  const y = (value) => height - (value / most) * height;
  const parts = [0.5, 1].map((share) => svg('line',
      { class: 'grid', x1: 0, x2: WIDTH, y1: height * share, y2: height * share }));
  for (const { values, name, area } of series) {
    const line = values.map((value, i) => `${xOf(i).toFixed(1)},${y(value).toFixed(1)}`).join('L');
    if (area) {
      parts.push(svg('path', {
        class: `area ${name}`,
        d: `M${xOf(0).toFixed(1)},${height}L${line}L${WIDTH},${height}Z`,
      }));
    }
    parts.push(svg('path', { class: `line ${name}`, d: `M${line}` }));
  }
  byId(`${chart}-chart`).replaceChildren(...parts);
  byId(`${chart}-peak`).textContent = `peak ${number(peak)}`;
}

// The pages of each state above those of the states before.
function drawPool(height) {
  let floor = seen.map(() => 0);
  const parts = [];
  for (const state of STATES) {
    const top = floor.map((value, i) => value + seen[i].pages[state] / seen[i].pages.total);
    const points = (row) => row.map((value, i) =>
        `${xOf(i).toFixed(1)},${((1 - value) * height).toFixed(1)}`);
    parts.push(svg('path', {
      class: `area state-${state}`,
      d: `M${points(top).join('L')}L${points(floor).reverse().join('L')}Z`,
    }));
    floor = top;
  }
  byId('pool-chart').replaceChildren(...parts);
}

function showPool(pages) {
  const bar = byId('pool-bar');
  const legend = byId('pool-legend');
  if (bar.children.length === 0) {
    for (const state of STATES) {
      const part = document.createElement('div');
      part.className = `state-${state}`;
      bar.append(part);
      const group = document.createElement('div');
      const term = document.createElement('dt');
      const swatch = document.createElement('span');
      swatch.className = `state-${state}`;
      term.append(swatch, state.replace('_', ' '));
      group.append(term, document.createElement('dd'));
      legend.append(group);
    }
  }
  STATES.forEach((state, i) => {
    bar.children[i].style.width = `${(100 * pages[state]) / pages.total}%`;
    legend.children[i].lastChild.textContent = number(pages[state]);
  });
  byId('pool-size').textContent = `${number(pages.total)} pages of ${pages.tokens_each} tokens, ` +
      `${bytes(pages.total * pages.bytes_each)}`;
  bar.setAttribute('aria-label', STATES.map((s) => `${pages[s]} ${s.replace('_', ' ')}`).join(', '));
}

function showLatency(latency) {
  const rows = [
    ['Time to first token', 'time_to_first_token'],
    ['Time per output token', 'time_per_output_token'],
    ['Whole request', 'duration'],
  ];
  byId('latency').replaceChildren(...rows.map(([title, name]) => {
    const row = document.createElement('tr');
    const head = document.createElement('th');
    head.scope = 'row';
    head.textContent = title;
    row.append(head, ...['p50', 'p90', 'p99'].map((rank) => {
      const cell = document.createElement('td');
      cell.textContent = latency.sequences ? milliseconds(latency[name][rank]) : '–';
      return cell;
    }));
    return row;
  }));
  byId('latency-count').textContent = latency.sequences ?
      `${number(latency.sequences)} sequences of the last minute` : 'nothing in the last minute';
}

function show(stats) {
  if (model === null) {
    showModes(stats.model.modes, stats.model.default_mode);
    byId('max_tokens').max = stats.model.max_context_tokens - 1;
  }
  model = stats.model;
  byId('model').textContent = `${model.name} on ${model.device}, ` +
      `context of ${number(model.max_context_tokens)} tokens`;
  byId('version').textContent = `photon-server ${stats.server.version}`;
  showHealth(stats.server.ready ? 'ready' : 'draining', stats.server.ready);

  // Counters start anew when the server does.
  const elapsed = before ? (stats.server.uptime_ms - before.server.uptime_ms) / 1000 : 0;
  const speed = elapsed > 0 ?
      (stats.totals.generated_tokens - before.totals.generated_tokens) / elapsed : 0;
  before = stats;
  seen.push({ speed: Math.max(speed, 0), pages: stats.pages, sequences: stats.sequences });
  if (seen.length > SEEN) seen.shift();

  byId('tokens-per-second').textContent = number(speed);
  byId('running').textContent = number(stats.sequences.running);
  byId('rows').textContent = `of ${number(stats.sequences.max_rows)}`;
  byId('waiting').textContent = number(stats.sequences.waiting);
  const { prompt_tokens: prompt, prompt_tokens_cached: cached } = stats.totals;
  byId('cached-share').textContent = prompt > 0 ? `${Math.round((100 * cached) / prompt)}%` : '–';
  drawLines('speed', 96,
      [{ values: seen.map((h) => h.speed), name: 'speed', area: true }], 10);
  drawLines('sequences', 96, [
    { values: seen.map((h) => h.sequences.running), name: 'running', area: true },
    { values: seen.map((h) => h.sequences.waiting), name: 'waiting', area: false },
  ], 4);
  showPool(stats.pages);
  drawPool(64);
  showLatency(stats.latency_ms);
}

function showHealth(text, ready) {
  byId('health').textContent = text;
  byId('health-dot').className = `dot ${ready ? 'ready' : 'unready'}`;
}

async function poll() {
  if (!document.hidden) {
    try {
      const response = await fetch('v1/stats', { headers: headers({}) });
      if (response.ok) show(await response.json());
      else showHealth(await errorOf(response), false);
    } catch {
      showHealth('unreachable', false);
    }
  }
  setTimeout(poll, POLL_MS);
}
poll();
