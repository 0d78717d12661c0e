// The frame in which a foreign page is shown, cleaned.
//
// Its sandbox lets nothing run and nothing open, submit or navigate beyond itself; where it may navigate to, the content policy
// of this page says: nowhere. `allow-same-origin` lets *this* page see when a link is followed; without `allow-scripts` it gives the
// foreign page nothing.
import pageStyle from '@page/style.css?url';

import ownStyle from '../page/page.css?url';
import { h } from '../page/dom';

// What the cleaned page may do by itself: look as this page's style says. Browsers differ in what 'self' is in such a frame.
const policy = () => `default-src 'none'; style-src ${location.origin}; base-uri 'none'; form-action 'none'`;

const escape = (text: string): string => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

// A frame with `html`, which is clean, as high as what is in it. `follow` is told the address of each link that is followed.
export function frame(html: string, follow: (address: string) => void): HTMLIFrameElement {
  const style = [pageStyle, ownStyle].map((path) => `<link rel="stylesheet" href="${escape(new URL(path, location.href).href)}">`).join('');
  const source =
    `<!doctype html><html><head><meta charset="utf-8"><meta http-equiv="content-security-policy" content="${policy()}">` +
    `<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">${style}</head>` +
    `<body class="framed"><article class="foreign" dir="auto">${html}</article></body></html>`;
  const shown = h('iframe', {
    class: 'reader', title: 'The page', sandbox: 'allow-same-origin', referrerpolicy: 'no-referrer', srcdoc: source, scrolling: 'no',
  });
  shown.addEventListener('load', () => {
    const page = shown.contentDocument;
    if (!page) return;
    const fit = () => {
      shown.style.height = `${Math.ceil(page.documentElement.getBoundingClientRect().height)}px`;
    };
    fit();
    const observer = new ResizeObserver(() => (shown.isConnected ? fit() : observer.disconnect()));
    observer.observe(page.documentElement);
    page.addEventListener('click', (event) => {
      const anchor = (event.target as Element | null)?.closest?.('a[href]');
      if (!anchor) return;
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const address = anchor.getAttribute('href') ?? '';
      if (address.startsWith('#')) page.getElementById(address.slice(1))?.scrollIntoView();
      else follow(address);
    });
  });
  return shown;
}
