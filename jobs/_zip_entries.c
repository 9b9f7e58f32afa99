/* Ordinary files of a zip, many at a time: their records in the central directory, and their local
 * headers with the content between them. Optional: jobs/archives/zip/ordinary.py has the same
 * functions in Python, and the tests compare them.
 *
 * Neither function makes a decision: both stop before anything that is not an ordinary file which is
 * completely there, or that is not right. The code in Python handles that one, and reports it.
 *
 * https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#define RECORD 46         /* bytes of a record in the directory, without name, field and comment */
#define LOCAL 30          /* bytes of a local header, likewise */
#define STORED 0
#define DEFLATE 8
#define MOST_DEFLATE 1032 /* factor by which a deflate stream expands, at most */
#define ENCRYPTED 0x2041  /* flags */
#define UTF8 0x0800
#define DESCRIPTOR 0x0008
#define FULL 0xFFFFFFFFu  /* the value is in a zip64 field */
#define TIME 0x5455       /* kinds of extra fields */
#define UNICODE_PATH 0x7075
#define DOS_FOLDER 0x10
#define TOGETHER 1024     /* entries that are returned at once, at most */

struct entry {
    const unsigned char *name;
    Py_ssize_t name_size, length; /* bytes, of the record too */
    unsigned flags, method, mode, dos_date, dos_time;
    uint32_t crc32, stored, size, offset;
    int has_time;
    int32_t time;
};

static unsigned
u16(const unsigned char *data)
{
    return data[0] | (unsigned)data[1] << 8;
}

static uint32_t
u32(const unsigned char *data)
{
    return u16(data) | (uint32_t)u16(data + 2) << 16;
}

/* The first extra field of that kind; NULL if there is none. */
static const unsigned char *
field(const unsigned char *extra, Py_ssize_t size, unsigned kind)
{
    Py_ssize_t at = 0;
    while (at + 4 <= size) {
        if (u16(extra + at) == kind)
            return extra + at;
        at += 4 + u16(extra + at + 2);
    }
    return NULL;
}

/* Whether the name is text whose encoding is known, and means a file. */
static int
is_ordinary_name(const unsigned char *name, Py_ssize_t size, int utf8)
{
    if (size == 0 || name[size - 1] == '/' || memchr(name, '\\', (size_t)size))
        return 0;
    unsigned char all = 0;
    for (Py_ssize_t at = 0; at < size; at++)
        all |= name[at];
    return utf8 || all < 0x80;
}

/* Whether a record of an ordinary file begins the data, and is completely there. */
static int
ordinary_record(const unsigned char *data, Py_ssize_t left, struct entry *entry)
{
    if (left < RECORD || memcmp(data, "PK\1\2", 4) != 0)
        return 0;
    Py_ssize_t extra_size = u16(data + 30);
    const unsigned char *extra = data + RECORD + u16(data + 28);
    entry->flags = u16(data + 8);
    entry->method = u16(data + 10);
    entry->dos_time = u16(data + 12);
    entry->dos_date = u16(data + 14);
    entry->crc32 = u32(data + 16);
    entry->stored = u32(data + 20);
    entry->size = u32(data + 24);
    entry->name = data + RECORD;
    entry->name_size = u16(data + 28);
    entry->length = RECORD + entry->name_size + extra_size + u16(data + 32);
    entry->offset = u32(data + 42);
    uint32_t attributes = u32(data + 38);
    mode_t type = attributes >> 16 & S_IFMT;
    entry->mode = attributes >> 16 & 0777;
    if (entry->mode == 0)
        entry->mode = 0644;
    if (left < entry->length || (type != 0 && type != S_IFREG) || entry->flags & ENCRYPTED ||
        u16(data + 34) != 0 || entry->stored == FULL || entry->size == FULL ||
        entry->offset == FULL || (attributes & DOS_FOLDER && entry->size == 0) ||
        !is_ordinary_name(entry->name, entry->name_size, (entry->flags & UTF8) != 0))
        return 0;
    if (entry->method == STORED ? entry->stored != entry->size
                                : entry->method != DEFLATE ||
                                      entry->size > (uint64_t)entry->stored * MOST_DEFLATE)
        return 0;
    entry->has_time = 0;
    if (extra_size > 0) {
        if (field(extra, extra_size, UNICODE_PATH) != NULL)
            return 0;
        const unsigned char *time = field(extra, extra_size, TIME);
        entry->has_time = time != NULL && u16(time + 2) >= 5 &&
                          4 + u16(time + 2) <= extra + extra_size - time && time[4] & 1;
        if (entry->has_time)
            entry->time = (int32_t)u32(time + 5);
    }
    return 1;
}

PyDoc_STRVAR(scan_records_doc,
"scan_records(block, start, place)\n--\n\n"
"Records of ordinary files in a block of the directory; see ``jobs.archives.zip.ordinary``.");

static PyObject *
scan_records(PyObject *module, PyObject *args)
{
    Py_buffer block;
    Py_ssize_t at, count = 0;
    unsigned long long place, bytes = 0;
    if (!PyArg_ParseTuple(args, "y*nK", &block, &at, &place))
        return NULL;
    uint64_t places[TOGETHER], offsets[TOGETHER], ends[TOGETHER];
    struct entry entry;
    PyObject *names = PyList_New(0);
    while (names != NULL && count < TOGETHER && at >= 0 && at <= block.len &&
           ordinary_record((const unsigned char *)block.buf + at, block.len - at, &entry)) {
        PyObject *name = PyBytes_FromStringAndSize((const char *)entry.name, entry.name_size);
        if (name == NULL || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
        places[count] = place + (uint64_t)at;
        offsets[count] = entry.offset;
        ends[count++] = (uint64_t)entry.offset + LOCAL + (uint64_t)entry.name_size + entry.stored;
        bytes += entry.size;
        at += entry.length;
    }
    PyBuffer_Release(&block);
    if (names == NULL)
        return NULL;
    Py_ssize_t size = count * (Py_ssize_t)sizeof(uint64_t);
    return Py_BuildValue("(Ny#y#y#Kn)", names, (char *)places, size, (char *)offsets, size,
                         (char *)ends, size, bytes, at);
}

/* Whether the descriptor after the content, in its short form, is that of the entry. */
static int
descriptor_is_right(const struct entry *entry, const unsigned char *data, Py_ssize_t left)
{
    if (left >= 16 && memcmp(data, "PK\7\10", 4) == 0)
        data += 4;
    else if (left < 12)
        return 0;
    return u32(data) == entry->crc32 && u32(data + 4) == entry->stored &&
           u32(data + 8) == entry->size;
}

/* A number of a local header with a descriptor after the content may be missing. */
static int
is_same(uint32_t local, uint32_t value, int may_miss)
{
    return local == value || (may_miss && (local == 0 || local == FULL));
}

/* Where the content begins; -1 if the local header, with which the data begin, is not that of the
 * entry, or if header, content and descriptor are not completely there. */
static Py_ssize_t
content_of(const struct entry *entry, const unsigned char *data, Py_ssize_t left)
{
    if (left < LOCAL || memcmp(data, "PK\3\4", 4) != 0)
        return -1;
    unsigned flags = u16(data + 6);
    uint32_t stored = u32(data + 18), size = u32(data + 22);
    Py_ssize_t extra_size = u16(data + 28), start = LOCAL + u16(data + 26) + extra_size;
    int may_miss = ((flags | entry->flags) & DESCRIPTOR) != 0;
    if (start > left || (int64_t)entry->stored > left - start ||
        u16(data + 26) != entry->name_size || flags & ENCRYPTED ||
        u16(data + 8) != entry->method || stored == FULL || size == FULL ||
        !is_same(u32(data + 14), entry->crc32, may_miss) ||
        !is_same(stored, entry->stored, may_miss) || !is_same(size, entry->size, may_miss) ||
        memcmp(data + LOCAL, entry->name, (size_t)entry->name_size) != 0 ||
        field(data + LOCAL + entry->name_size, extra_size, UNICODE_PATH) != NULL)
        return -1;
    Py_ssize_t end = start + (Py_ssize_t)entry->stored;
    if (entry->flags & DESCRIPTOR && !descriptor_is_right(entry, data + end, left - end))
        return -1;
    return start;
}

/* Have an empty file stored, because its deflate stream has no use; 0 if it has an unusual one. */
static int
is_stored_if_empty(struct entry *entry, const unsigned char *content)
{
    if (entry->size > 0 || entry->method == STORED)
        return 1;
    if (entry->stored != 2 || memcmp(content, "\3\0", 2) != 0)
        return 0;
    entry->method = STORED;
    entry->stored = 0;
    return 1;
}

static PyObject *
file_of(const struct entry *entry, Py_ssize_t start)
{
    PyObject *time = entry->has_time ? PyLong_FromLong(entry->time) : Py_NewRef(Py_None);
    if (time == NULL)
        return NULL;
    return Py_BuildValue("(y#I(II)NInIII)", (const char *)entry->name, entry->name_size, entry->mode,
                         entry->dos_date, entry->dos_time, time, entry->method, start,
                         entry->stored, entry->size, entry->crc32);
}

PyDoc_STRVAR(find_files_doc,
"find_files(directory, start, block, place, offsets, most)\n--\n\n"
"Ordinary files that are completely in a block of the archive; see "
"``jobs.archives.zip.ordinary``.");

static PyObject *
find_files(PyObject *module, PyObject *args)
{
    Py_buffer directory, block, offsets;
    Py_ssize_t at;
    unsigned long most;
    unsigned long long place;
    if (!PyArg_ParseTuple(args, "y*ny*Ky*k", &directory, &at, &block, &place, &offsets, &most))
        return NULL;
    PyObject *files = PyList_New(0);
    const uint64_t *each = offsets.buf;
    Py_ssize_t count = offsets.len / (Py_ssize_t)sizeof(uint64_t);
    struct entry entry;
    /* Each one ends before the next one begins; what is after the last one is not known here. */
    for (Py_ssize_t index = 0; files != NULL && index + 1 < count; index++) {
        if (at < 0 || at > directory.len || each[index] < place ||
            each[index] - place > (uint64_t)block.len || each[index + 1] < each[index] ||
            !ordinary_record((const unsigned char *)directory.buf + at, directory.len - at, &entry) ||
            entry.size > most)
            break;
        Py_ssize_t begin = (Py_ssize_t)(each[index] - place), left = block.len - begin;
        if (each[index + 1] - each[index] < (uint64_t)left)
            left = (Py_ssize_t)(each[index + 1] - each[index]);
        const unsigned char *local = (const unsigned char *)block.buf + begin;
        Py_ssize_t start = content_of(&entry, local, left);
        if (start < 0 || !is_stored_if_empty(&entry, local + start))
            break;
        PyObject *file = file_of(&entry, begin + start);
        if (file == NULL || PyList_Append(files, file) < 0)
            Py_CLEAR(files);
        Py_XDECREF(file);
        at += entry.length;
    }
    PyBuffer_Release(&directory);
    PyBuffer_Release(&block);
    PyBuffer_Release(&offsets);
    return files;
}

static PyMethodDef methods[] = {
    {"scan_records", scan_records, METH_VARARGS, scan_records_doc},
    {"find_files", find_files, METH_VARARGS, find_files_doc},
    {NULL, NULL, 0, NULL},
};

/* SOURCE_CRC32, from setup.py: of this file, so that the tests notice an old build. */
static int
add_source(PyObject *module)
{
    return PyModule_AddIntConstant(module, "SOURCE_CRC32", SOURCE_CRC32);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_source},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "jobs._zip_entries",
    .m_doc = "Compiled forms of the functions of jobs.archives.zip.ordinary.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__zip_entries(void)
{
    return PyModuleDef_Init(&definition);
}
