/* The two slowest inner loops of extraction in Python: finding ordinary members in a block
 * of a tar, and writing small files. Both are optional: jobs/formats/tar_header.py and
 * jobs/outputs/files.py have the same functions in Python, and the tests compare them.
 *
 * Neither function makes a decision. scan_tar() stops before anything that is not an ordinary file
 * with an ordinary header, and write_small() reports EEXIST for anything that is neither a new file
 * nor one that may be overwritten; the Python code handles both.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 512

/* An octal field as tar writers fill it: spaces, then digits, then NULs or spaces. -1: anything
 * else, such as base 256, which Python parses. */
static int64_t
octal(const unsigned char *field, int length)
{
    int64_t value = 0;
    int at = 0, digits = 0;
    while (at < length && field[at] == ' ')
        at++;
    for (; at < length && field[at] >= '0' && field[at] <= '7'; at++, digits++)
        value = value * 8 + (field[at] - '0');
    if (digits == 0 || digits > 20)
        return -1;
    for (; at < length; at++)
        if (field[at] != '\0' && field[at] != ' ')
            return -1;
    return value;
}

static int
checksum_is_right(const unsigned char *header)
{
    int64_t stored = octal(header + 148, 8);
    uint32_t sum = 8 * ' ';
    for (int at = 0; at < 148; at++)
        sum += header[at];
    for (int at = 156; at < BLOCK; at++)
        sum += header[at];
    return stored == (int64_t)sum;
}

static int
field_length(const unsigned char *field, int length)
{
    const unsigned char *end = memchr(field, '\0', length);
    return end ? (int)(end - field) : length;
}

/* The name in the header, with the ustar prefix before it; returns its length, or 0 if Python has
 * to handle it. */
static int
name_of(const unsigned char *header, unsigned char *name)
{
    int length = field_length(header, 100), before = 0;
    int ustar = memcmp(header + 257, "ustar\0", 6) == 0;
    int gnu = memcmp(header + 257, "ustar ", 6) == 0;
    if (length == 0 || (!ustar && !gnu))
        return 0;
    if (ustar && header[345]) {
        before = field_length(header + 345, 155);
        memcpy(name, header + 345, before);
        name[before++] = '/';
    }
    memcpy(name + before, header, length);
    length += before;
    return name[length - 1] == '/' ? 0 : length;
}

/* Whether a pax key has no effect on how a member is written. */
static int
is_neutral(const char *key, Py_ssize_t length)
{
    static const char *const keys[] = {"atime", "ctime", "uid", "gid", "uname", "gname", "comment"};
    for (size_t each = 0; each < sizeof keys / sizeof keys[0]; each++)
        if (strlen(keys[each]) == (size_t)length && memcmp(keys[each], key, length) == 0)
            return 1;
    return 0;
}

/* The time in a pax extended header that has only a time and records without effect; NULL without
 * an exception: Python has to handle it. */
static PyObject *
pax_time(const char *data, Py_ssize_t size)
{
    PyObject *mtime = NULL;
    Py_ssize_t at = 0;
    while (at < size) {
        Py_ssize_t length = 0, digits = at;
        while (digits < size && digits < at + 6 && data[digits] >= '0' && data[digits] <= '9')
            length = length * 10 + (data[digits++] - '0');
        if (digits == at || digits >= size || data[digits] != ' ')
            goto unusual;
        const char *key = data + digits + 1;
        Py_ssize_t left = length - (digits + 1 - at);
        if (left < 2 || length > size - at || data[at + length - 1] != '\n')
            goto unusual;
        const char *equals = memchr(key, '=', left);
        if (equals == NULL)
            goto unusual;
        const char *value = equals + 1, *end = data + at + length - 1;
        if (equals - key == 5 && memcmp(key, "mtime", 5) == 0) {
            char text[40];
            const char *dot = memchr(value, '.', end - value);
            Py_ssize_t digits = (dot ? dot : end) - value;
            if (mtime != NULL || digits < 1 || digits > 18 ||
                end - value >= (Py_ssize_t)sizeof text)
                goto unusual;
            for (const char *each = value; each < end; each++)
                if (each != dot && (*each < '0' || *each > '9'))
                    goto unusual;
            memcpy(text, value, end - value);
            text[end - value] = '\0';
            mtime = dot ? PyFloat_FromDouble(PyOS_string_to_double(text, NULL, NULL))
                         : PyLong_FromString(text, NULL, 10);
            if (mtime == NULL || PyErr_Occurred())
                goto unusual;
        }
        else if (!is_neutral(key, equals - key))
            goto unusual;
        at += length;
    }
    return mtime;
unusual:
    Py_CLEAR(mtime);
    PyErr_Clear();
    return NULL;
}

static Py_ssize_t
padded(int64_t size)
{
    return (Py_ssize_t)((size + BLOCK - 1) & ~(int64_t)(BLOCK - 1));
}

/* The ordinary file whose first header is at *at; sets *at to the next header. NULL without an
 * exception: no ordinary file is completely in the block. */
static PyObject *
ordinary_file(const unsigned char *data, Py_ssize_t length, Py_ssize_t *at)
{
    const unsigned char *header = data + *at;
    const Py_ssize_t first = *at;
    Py_ssize_t start = first;
    PyObject *mtime = NULL, *member = NULL;
    unsigned char name[256];
    if (header[156] == 'x') {
        int64_t size = octal(header + 124, 12);
        if (size < 0 || size > length - start - 2 * BLOCK || octal(header + 100, 8) < 0 ||
            octal(header + 136, 12) < 0 || !checksum_is_right(header))
            return NULL;
        Py_ssize_t next = start + BLOCK + padded(size);
        if (length - next < BLOCK)
            return NULL;
        mtime = pax_time((const char *)header + BLOCK, (Py_ssize_t)size);
        if (mtime == NULL)
            return NULL;
        start = next;
        header = data + start;
    }
    if ((header[156] == '0' || header[156] == '\0') && checksum_is_right(header)) {
        int name_length = name_of(header, name);
        int64_t mode = octal(header + 100, 8), size = octal(header + 124, 12);
        int64_t seconds = octal(header + 136, 12);
        Py_ssize_t content = start + BLOCK;
        if (name_length > 0 && mode >= 0 && size >= 0 && seconds >= 0 && size <= length - content &&
            padded(size) <= length - content) {
            if (mtime == NULL)
                mtime = PyLong_FromLongLong(seconds);
            if (mtime != NULL)
                member = Py_BuildValue("(y#nnLiO)", (char *)name, (Py_ssize_t)name_length, first,
                                       content, (long long)size, (int)(mode & 0777), mtime);
            *at = content + padded(size);
        }
    }
    Py_XDECREF(mtime);
    return member;
}

PyDoc_STRVAR(scan_tar_doc,
"scan_tar(block, start)\n--\n\n"
"Ordinary files that are completely in ``block``; see ``jobs.formats.tar_header``.");

static PyObject *
scan_tar(PyObject *module, PyObject *args)
{
    Py_buffer block;
    Py_ssize_t at;
    if (!PyArg_ParseTuple(args, "y*n", &block, &at))
        return NULL;
    PyObject *members = PyList_New(0);
    while (members != NULL && at >= 0 && block.len - at >= BLOCK) {
        PyObject *member = ordinary_file(block.buf, block.len, &at);
        if (member == NULL)
            break;
        if (PyList_Append(members, member) < 0)
            Py_CLEAR(members);
        Py_DECREF(member);
    }
    PyBuffer_Release(&block);
    if (PyErr_Occurred())
        Py_CLEAR(members);
    return members;
}

struct file {
    const char *path;
    int mode;
    Py_buffer data;
    int has_mtime, has_permissions;
    long long mtime_ns;
    long permissions;
    int error;
};

/* The folder of the last file, open (-1: it is not), so that the kernel does not walk the complete
 * path of each file: that takes a quarter of the time of creating a small one. */
struct folder {
    const char *path;
    size_t length;
    int fd;
};

/* The name of a file in ``folder``, which becomes that of ``path``; or ``path`` itself, which is
 * relative to AT_FDCWD, and the folder is not open. */
static const char *
name_in(struct folder *folder, const char *path)
{
    char copy[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (folder->fd >= 0 && folder->length == length && memcmp(folder->path, path, length) == 0)
        return slash + 1;
    if (folder->fd >= 0)
        close(folder->fd);
    folder->fd = -1;
    if (length == 0 || length >= sizeof copy)
        return path;
    memcpy(copy, path, length);
    copy[length] = '\0';
    folder->path = path;
    folder->length = length;
    folder->fd = open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return folder->fd < 0 ? path : slash + 1;
}

/* A descriptor for overwriting a file of an earlier attempt, and its size; -1 with EEXIST if that
 * is not an ordinary file with the right properties. */
static int
open_old(int folder, const char *name, const struct file *file, off_t *size)
{
    struct stat status;
    int fd = openat(folder, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_nlink != 1 ||
        !(status.st_mode & S_IWUSR) || ((status.st_mode ^ (mode_t)file->mode) & 0100)) {
        if (fd >= 0)
            close(fd);
        errno = EEXIST;
        return -1;
    }
    *size = status.st_size;
    return fd;
}

/* 0, or the error number of the call that failed. */
static int
write_file(struct folder *folder, const struct file *file)
{
    off_t old = 0;
    const char *name = name_in(folder, file->path);
    int at = folder->fd < 0 ? AT_FDCWD : folder->fd;
    int fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file->mode);
    if (fd < 0 && errno == EEXIST)
        fd = open_old(at, name, file, &old);
    if (fd < 0)
        return errno;
    const char *data = file->data.buf;
    Py_ssize_t left = file->data.len;
    int error = 0;
    while (left > 0 && error == 0) {
        ssize_t count = write(fd, data, (size_t)left);
        if (count < 0)
            error = errno == EINTR ? 0 : errno;
        else {
            data += count;
            left -= count;
        }
    }
    if (error == 0 && old > file->data.len && ftruncate(fd, file->data.len) < 0)
        error = errno;
    if (error == 0 && file->has_permissions && fchmod(fd, (mode_t)file->permissions) < 0)
        error = errno;
    if (error == 0 && file->has_mtime) {
        long long rest = file->mtime_ns % 1000000000, seconds = file->mtime_ns / 1000000000;
        if (rest < 0) {
            rest += 1000000000;
            seconds -= 1;
        }
        const struct timespec times[2] = {{0, UTIME_NOW}, {seconds, rest}};
        if (futimens(fd, times) < 0)
            error = errno;
    }
    if (close(fd) < 0 && error == 0)
        error = errno;
    return error;
}

static double
seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

PyDoc_STRVAR(write_small_doc,
"write_small(files)\n--\n\n"
"Write files without the interpreter lock; see ``jobs.outputs.files``.");

static PyObject *
write_small(PyObject *module, PyObject *argument)
{
    PyObject *items = PySequence_Fast(argument, "files is to be a sequence");
    if (items == NULL)
        return NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items), known = 0;
    struct file *files = PyMem_Calloc(count ? count : 1, sizeof(struct file));
    PyObject *errors, *result = NULL;
    if (files == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    while (known < count) {
        struct file *file = &files[known];
        PyObject *item = PySequence_Fast_GET_ITEM(items, known), *mtime, *permissions;
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a file is to be a tuple of five");
            goto end;
        }
        if (!PyArg_ParseTuple(item, "yiy*OO", &file->path, &file->mode, &file->data, &mtime,
                              &permissions))
            goto end;
        known++;
        file->has_mtime = mtime != Py_None;
        if (file->has_mtime) {
            file->mtime_ns = PyLong_AsLongLong(mtime);
            if (PyErr_Occurred())
                goto end;
        }
        file->has_permissions = permissions != Py_None;
        if (file->has_permissions) {
            file->permissions = PyLong_AsLong(permissions);
            if (PyErr_Occurred())
                goto end;
        }
    }
    double shortest = INFINITY;
    Py_BEGIN_ALLOW_THREADS
    struct folder folder = {.fd = -1};
    double begun = seconds();
    for (Py_ssize_t at = 0; at < count; at++) {
        files[at].error = write_file(&folder, &files[at]);
        double ended = seconds();
        if (ended - begun < shortest)
            shortest = ended - begun;
        begun = ended;
    }
    if (folder.fd >= 0)
        close(folder.fd);
    Py_END_ALLOW_THREADS
    errors = PyList_New(count);
    for (Py_ssize_t at = 0; errors != NULL && at < count; at++) {
        PyObject *error = PyLong_FromLong(files[at].error);
        if (error == NULL)
            Py_CLEAR(errors);
        else
            PyList_SET_ITEM(errors, at, error);
    }
    if (errors != NULL)
        result = Py_BuildValue("(Nd)", errors, shortest);
end:
    for (Py_ssize_t at = 0; at < known; at++)
        PyBuffer_Release(&files[at].data);
    PyMem_Free(files);
    Py_DECREF(items);
    return result;
}

static PyMethodDef methods[] = {
    {"scan_tar", scan_tar, METH_VARARGS, scan_tar_doc},
    {"write_small", write_small, METH_O, write_small_doc},
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
    .m_name = "jobs._speedups",
    .m_doc = "Compiled forms of functions of jobs.formats.tar_header and jobs.outputs.files.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__speedups(void)
{
    return PyModuleDef_Init(&definition);
}
