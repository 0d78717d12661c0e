// The badge: `<script src="https://…/badge.js" async referrerpolicy="no-referrer"></script>` inserts a small button at its place.
//
// Before a click, the badge loads, stores and requests nothing. A click opens the volunteer's page in a separate window, where no
// other page can cover the switch. The badge adds one element with a closed shadow root beside the script, and changes nothing else
// of the site. `data-umbel` is the URL of the server with the volunteer's page, if another server serves the script.

const script = document.currentScript as HTMLScriptElement | null;

const FLOWER =
  '<svg viewBox="0 0 32 32" aria-hidden="true"><g fill="none" stroke="#4f9a63" stroke-width="1.6" stroke-linecap="round">' +
  '<path d="M16 30V17M16 17 5 10M16 17l-6-10M16 17V5M16 17l6-10M16 17l11-7"/></g><g fill="#9a6bd1"><circle cx="5" cy="10" r="3"/>' +
  '<circle cx="10" cy="6" r="3"/><circle cx="16" cy="4.5" r="3"/><circle cx="22" cy="6" r="3"/><circle cx="27" cy="10" r="3"/></g></svg>';

const STYLE = `:host { all: initial; display: inline-block; color-scheme: light dark; }
a { display: inline-flex; align-items: center; gap: .5em; padding: .4em .8em; font: 500 14px/1.4 system-ui, sans-serif;
  color: light-dark(#1f2328, #e8e6e3); background: light-dark(#fff, #1f2126); border: 1px solid light-dark(#5a6270, #a3a9b5);
  border-radius: .6em; text-decoration: none; }
a:hover { border-color: light-dark(#6b3fa0, #b794f0); }
a:focus-visible { outline: 3px solid light-dark(#6b3fa0, #b794f0); outline-offset: 2px; }
svg { width: 1.5em; height: 1.5em; flex: none; }`;

function insertBadge(tag: HTMLScriptElement): void {
  const page = new URL('volunteer', tag.dataset['umbel'] ? new URL(tag.dataset['umbel'].replace(/\/?$/, '/'), location.href) : tag.src).href;
  if (!/^https?:/.test(page)) return;
  const host = document.createElement('umbel-badge');
  const root = host.attachShadow({ mode: 'closed' });
  // A constructed style sheet is not an inline style, so a content security policy of the site does not block it.
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];
  const link = document.createElement('a');
  link.href = page;
  link.target = '_blank';
  link.rel = 'noopener noreferrer';
  link.title = 'Opens a window in which this browser can become a relay for people who need privacy. Nothing runs until you turn it on there.';
  const flower = new DOMParser().parseFromString(FLOWER.replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" '), 'image/svg+xml');
  link.append(document.importNode(flower.documentElement, true), tag.dataset['words'] ?? 'Make this browser a relay');
  link.addEventListener('click', (event) => {
    if (event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    // A browser without small windows opens a tab.
    window.open(page, '_blank', 'noopener,noreferrer,popup,width=480,height=820');
  });
  root.append(link);
  tag.after(host);
}

if (script) insertBadge(script);
