// The server's answers. Every address is relative to the page, so that any path prefix works.

export class ApiError extends Error {
  constructor(text, status = 0, wait = 0) {
    super(text);
    this.status = status;
    this.wait = wait;
  }
}

const SILENT = 'The server does not answer. Is it still running?';

async function failure(answer) {
  let text = '';
  try { text = (await answer.json()).error; } catch { /* no sentence came */ }
  text ||= `The server answered ${answer.status} ${answer.statusText}`;
  return new ApiError(text, answer.status, Number(answer.headers.get('Retry-After')) || 0);
}

export async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw error.name === 'AbortError' ? error : new ApiError(SILENT);
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

export const get = async (path) => (await call(path)).json();
const post = (path, body, headers) => call(path, { method: 'POST', body, headers });
const json = (value) => JSON.stringify(value);
const AS_JSON = { 'Content-Type': 'application/json' };

function multipart(name, value, files) {
  const form = new FormData();
  form.append(name, json(value));
  for (const [part, blob] of Object.entries(files)) form.append(part, blob, `${part}.png`);
  return form;
}

// Uploads the bytes of a file as they are. `progress` gets shares from 0 to 1.
export function upload(file, progress = () => {}) {
  return new Promise((done, fail) => {
    const request = new XMLHttpRequest();
    request.open('POST', `api/pictures?name=${encodeURIComponent(file.name || 'pasted.png')}`);
    request.upload.onprogress = (event) => progress(event.loaded / event.total);
    request.onerror = () => fail(new ApiError(SILENT));
    request.onload = () => {
      let found = {};
      try { found = JSON.parse(request.responseText); } catch { /* no sentence came */ }
      if (request.status < 300) return done(found);
      fail(new ApiError(found.error || `The server answered ${request.status}`, request.status));
    };
    request.setRequestHeader('Content-Type', 'application/octet-stream');
    request.send(file);
  });
}

export const about = () => get('api/about');
export const pictures = async () => (await get('api/pictures')).pictures;
export const asPicture = async (result) =>
  (await post('api/pictures', json({ from_result: result }), AS_JSON)).json();

export const preview = (kind, id, side) => `api/${kind}/${id}/preview?side=${side}`;
export const resultFile = (result) => `api/results/${result}`;
export const recipeFile = (result) => `api/results/${result}/recipe`;
export const wordsFile = (result) => `api/results/${result}/words`;

// Masks are blobs of one-bit PNGs.
export async function readMask(picture, file, subject = false) {
  const answer = await post(`api/masks?picture=${picture}${subject ? '&subject=1' : ''}`, file,
    { 'Content-Type': 'application/octet-stream' });
  let notes = [];
  try { notes = JSON.parse(answer.headers.get('X-Notes')) ?? []; } catch { /* there are none */ }
  return { blob: await answer.blob(), notes };
}
export const select = async (request, mask) =>
  (await post('api/select', multipart('request', request, mask ? { mask } : {}))).blob();
export const frame = async (request, mask, signal) =>
  (await call('api/frame', { method: 'POST', body: multipart('request', request, { mask }), signal })).json();

export const jobs = async () => (await get('api/jobs')).jobs;
export const job = (id) => get(`api/jobs/${id}`);
export const start = async (request, masks) =>
  (await post('api/jobs', multipart('job', request, masks))).json();
export const stop = (id) => call(`api/jobs/${id}`, { method: 'DELETE' });
export const jobMask = async (id, region) => (await call(`api/jobs/${id}/masks/${region}`)).blob();
export const jobCut = async (id, region) => (await call(`api/jobs/${id}/cuts/${region}`)).blob();

// The latest look of a running job: a picture and its place on the photo.
export async function jobPreview(path) {
  const answer = await call(path);
  const frame = (answer.headers.get('X-Frame') ?? '').split(',').map(Number);
  return { blob: await answer.blob(), frame: frame.length === 4 ? frame : null };
}

// Follows a job until its last event. `handle(name, data)` gets every event, 'lost' and 'found'.
// Returns a function that stops it.
export function follow(id, handle) {
  let source = null;
  let timer = 0;
  let over = false;
  const end = () => { over = true; clearTimeout(timer); source?.close(); };
  const open = () => {
    source = new EventSource(`api/jobs/${id}/events`);
    source.onopen = () => handle('found', {});
    source.onerror = () => {
      if (over) return;
      handle('lost', {});
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      clearTimeout(timer);
      timer = setTimeout(open, 2000);
    };
    for (const name of ['waiting', 'running', 'candidate', 'done', 'failed', 'cancelled']) {
      source.addEventListener(name, (event) => {
        if (['done', 'failed', 'cancelled'].includes(name)) end();
        handle(name, JSON.parse(event.data || '{}'));
      });
    }
  };
  open();
  return end;
}
