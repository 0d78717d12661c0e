// A certificate authority for the tests, made by openssl, and its certificates.
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const CONFIG = `
[ca]
default_ca = ours
[ours]
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical,CA:true
keyUsage = critical,keyCertSign
`;

// Creates an authority with the name `name`; `pem` is its root certificate.
export function authority(name) {
  const folder = mkdtempSync(join(tmpdir(), 'umbel-authority-'));
  const openssl = (...options) => execFileSync('openssl', options, { cwd: folder, stdio: ['ignore', 'ignore', 'pipe'] });
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  for (const [name, text] of [['ca.cnf', CONFIG], ['index.txt', ''], ['serial', '01']]) writeFileSync(join(folder, name), text);
  openssl('req', '-x509', ...key, '-keyout', 'ca.key', '-out', 'ca.pem', '-days', '2', '-subj', `/CN=${name}`,
    '-config', 'ca.cnf', '-extensions', 'authority');
  let count = 0;
  return {
    pem: readFileSync(join(folder, 'ca.pem'), 'utf8'),
    // A server certificate for `names`, in openssl's notation; valid from now to 2099 by default.
    certificate(names, { from, to = '20990101000000Z' } = {}) {
      const name = `site${(count += 1)}`;
      openssl('req', '-new', ...key, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', '/CN=site', '-config', 'ca.cnf',
        '-addext', `subjectAltName=${names}`);
      openssl('ca', '-batch', '-config', 'ca.cnf', '-in', `${name}.csr`, '-out', `${name}.pem`, '-notext',
        ...(from ? ['-startdate', from] : []), '-enddate', to);
      return { key: readFileSync(join(folder, `${name}.key`)), cert: readFileSync(join(folder, `${name}.pem`)) };
    },
    remove: () => rmSync(folder, { recursive: true }),
  };
}
